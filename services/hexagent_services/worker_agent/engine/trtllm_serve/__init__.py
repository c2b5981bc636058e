"""`trtllm-serve` over HTTP in the place of an engine host: orders become requests, answers the same frames."""
