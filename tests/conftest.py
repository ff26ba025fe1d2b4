"""Before anything imports the Hub's client, which reads these once: plain uploads, no bars, nobody's token or cache."""

import os
import tempfile

os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="ziplora-hf-")
os.environ.pop("HF_TOKEN", None)
