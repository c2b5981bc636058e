"""The OpenAI-compatible front: HTTP requests become calls of workflows."""
