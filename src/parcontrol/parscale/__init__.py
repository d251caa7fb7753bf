"""The ParScale model: streams around any decoder of transformers with standard attention."""
