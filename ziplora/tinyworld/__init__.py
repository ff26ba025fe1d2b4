"""The bundled tiny world: an SDXL-class model family trained from scratch on pictures drawn here."""
