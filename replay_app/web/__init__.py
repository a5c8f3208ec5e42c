"""HTTP: the API and the status page of a worker."""
