"""ZipLoRA merges of subject and style LoRAs: files, methods, base models, previews and scores."""
