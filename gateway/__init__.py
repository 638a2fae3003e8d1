"""Everything a caller touches: the HTTP surface, the catalogue, the jobs. Plain FastAPI, no Ray."""
