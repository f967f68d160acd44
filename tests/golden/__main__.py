"""Write down what stands now: python -m tests.golden"""

import json
import tempfile
from pathlib import Path

from pipeline.demo.smollm2 import ensure_smollm2
from tests.golden import scores, selections

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        kept = selections.found(Path(folder))
        lines = (f" {json.dumps(name)}: {json.dumps(rows)}" for name, rows in kept.items())
        selections.FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        columns = scores.found(Path(folder) / "scores", ensure_smollm2(), "plain")
        text = json.dumps({"machine": scores.machine(), "columns": columns}, indent=None)
        scores.FILE.write_text(text.replace('], "', '],\n "') + "\n")
