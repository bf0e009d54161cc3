"""The tool that kills either party of a real answer: its commands, without the kills.

Those are `test_faults`, `test_session_cli`; with a real model they take minutes.
"""

import subprocess
import sys
from pathlib import Path

from test_cli import model_path  # noqa: F401  (fixture)

TOOL = Path(__file__).parent.parent / "tools" / "kill_and_resume.py"


def test_an_answer_that_nobody_disturbs(model_path):  # noqa: F811
    words = [sys.executable, str(TOOL), str(model_path), "--times", "0", "--tokens", "3"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("undisturbed: 3 tokens")
