"""Reading a source costs none of the heavy libraries."""

import subprocess
import sys


def test_sources_load_no_heavy_library():
    code = (
        "import sys, pipeline.sources.reader, pipeline.sources.inspect;"
        "heavy = {'ray', 'torch', 'transformers', 'datasets', 'vllm', 'pipeline.data'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
