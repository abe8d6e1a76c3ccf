import sys
from pathlib import Path

# example results: make_results
sys.path.insert(0, str(Path(__file__).parents[1] / "reports"))
