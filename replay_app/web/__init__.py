"""HTTP: what people and programs see and ask of a worker (design section 8)."""
