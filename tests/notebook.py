"""Executes a notebook and writes it with the outputs that came:

python tests/notebook.py examples/notebooks/tour.ipynb examples/notebooks/tour.ipynb
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

source, target = map(Path, sys.argv[1:])
notebook = nbformat.read(source, as_version=4)
NotebookClient(notebook, timeout=60, kernel_name="python3", record_timing=False).execute()
notebook.metadata["language_info"] = {"name": "python"}  # the kernel adds versions
nbformat.write(notebook, target)
