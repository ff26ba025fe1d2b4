"""ZipLoRA merges of subject and style LoRAs: files, methods, base models, previews and scores."""

import logging

# Here, so that it is in place whoever imports diffusers or transformers first: they load image processors that no merge
# uses, and each of them warns that torchvision is missing.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "requires torchvision (not installed)" not in record.getMessage()
)
