"""Submit a command and its config to a Ray cluster through Ray's Job SDK. `shipment` says what is sent."""

from ray.job_submission import JobSubmissionClient

from pipeline.on_ray.jobs import Echo, connect, follow_job, patiently, submitted_jobs
from pipeline.on_ray.shipment import Shipment
from pipeline.scratch import scratch_folder


def submit_job(shipment: Shipment, *, address: str | None, wait: bool, echo: Echo) -> int:
    """Submit a job and return the exit code: the job's own if we waited for it, else 0.

    While a job still runs, submitting the same again follows it instead of starting another.

    Raises:
        ConfigError: Ray at `address` refused the client; nothing was sent.
        TemporaryError: no Ray dashboard answers at `address`, or it has stopped answering.
    """
    client = connect(address)
    name = shipment.submission_id
    jobs = submitted_jobs(client)
    tries = {each: j for each, j in jobs.items() if each == name or each.startswith(f"{name}-")}
    submission_id = next((each for each, j in tries.items() if not j.status.is_terminal()), None)
    if submission_id is not None:
        echo(f"job {submission_id} is running already")
    else:
        submission_id = name if not tries else f"{name}-{len(tries) + 1}"
        _submit(client, shipment, submission_id)
        echo(f"submitted {submission_id} to {address}")
    return follow_job(client, submission_id, echo) if wait else 0


def _submit(client: JobSubmissionClient, shipment: Shipment, submission_id: str) -> None:
    with scratch_folder("job") as work:
        runtime_env = dict(shipment.write(work))

        def submit() -> None:
            # The request may have succeeded although its reply was lost, and an id can be used only once.
            if any(job.submission_id == submission_id for job in client.list_jobs()):
                return
            client.submit_job(
                entrypoint=shipment.entrypoint,
                runtime_env=runtime_env,
                submission_id=submission_id,
                metadata=shipment.metadata,
            )

        patiently(submit, "the cluster takes no job")
