"""The services of a HexAGenT stack, each started with `python -m hexagent_services.NAME`."""
