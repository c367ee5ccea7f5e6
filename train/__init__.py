"""The loops: pre-train, look at what was learned."""
