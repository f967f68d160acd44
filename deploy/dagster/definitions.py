"""A Dagster asset: the subset that alignpot writes, made on a Ray cluster. README.md says what is where."""

import dagster as dg

PYTHON = "/opt/alignpot/bin/python"
CONFIG = "/opt/alignpot/configs/config.yaml"
ADDRESS = "http://ray-head:8265"
TEMPORARY = 75


@dg.asset(kinds={"ray"})
def preference_subset(
    context: dg.AssetExecutionContext, pipes_subprocess_client: dg.PipesSubprocessClient
) -> dg.MaterializeResult:
    """Score the pairs and select the subset. Only exit code 75 is tried again."""
    script = dg.file_relative_path(__file__, "submit.py")
    done = pipes_subprocess_client.run(command=[PYTHON, script, CONFIG, ADDRESS], context=context)
    [message] = done.get_custom_messages()
    code = message["exit_code"]
    if code == TEMPORARY:
        raise dg.RetryRequested(max_retries=5, seconds_to_wait=120)
    if code != 0:
        raise dg.Failure(f"alignpot ended with {code}. The log above says why.", allow_retries=False)
    return done.get_materialize_result()


defs = dg.Definitions(assets=[preference_subset], resources={"pipes_subprocess_client": dg.PipesSubprocessClient()})
