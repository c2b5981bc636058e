"""Text of models: chat templates and tokenizers before an engine, detokenizing and parsing behind it."""
