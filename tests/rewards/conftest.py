"""Lets the tests, and the workers that they start, import `reward_functions` under every import mode of pytest."""

import pathlib
import sys

folder = str(pathlib.Path(__file__).parent)
if folder not in sys.path:
    sys.path.insert(0, folder)
