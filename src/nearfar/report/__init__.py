"""From a run folder to something to look at: one HTML page (``page``), one picture (``picture``), words for numbers."""
