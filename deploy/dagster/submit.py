"""What the asset runs, in the environment of alignpot: submits the job, follows it, reports the subset to Dagster."""

import subprocess
import sys
from pathlib import Path

from dagster_pipes import open_dagster_pipes

from pipeline.config import load_config
from pipeline.data.manifest import find_manifest
from pipeline.data.place import Place
from pipeline.data.sealed import fingerprint_digest

CONFIG, ADDRESS = sys.argv[1:]
ALIGNPOT = Path(sys.executable).parent / "alignpot"

with open_dagster_pipes() as pipes:
    code = subprocess.run([ALIGNPOT, "submit", "run", CONFIG, "--address", ADDRESS], check=False).returncode
    config = load_config(Path(CONFIG)) if code == 0 else None
    if config is not None and config.output is not None:
        subset = find_manifest(Place.open(config.output.path, config.storage), "subset")
        if subset is not None:
            pipes.report_asset_materialization(
                metadata={"rows": subset.num_rows, "path": config.output.path},
                data_version=fingerprint_digest(subset.fingerprint),
            )
    pipes.report_custom_message({"exit_code": code})
