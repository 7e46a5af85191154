"""From audio file to audio file with an exported model: enhancement and separation of recordings of any length."""
