"""The benchmark MMAU test-mini (arXiv 2410.19168): questions about sounds, music and speech."""
