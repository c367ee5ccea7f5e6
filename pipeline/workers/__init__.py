"""The processes beside a trainer that read and decode, and the ring that batches come in. Begin with sidecar.py."""
