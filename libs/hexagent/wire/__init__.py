"""Messages to core values and back, as pure functions; nothing here waits, and nothing knows the bus.

`X_to_proto` and `X_from_proto` convert messages, `X_to_bytes` and `X_from_bytes` also serialise. Equal values give
equal bytes. What cannot be read is `InvalidArgument` with the path of the field, whoever sent it.
"""
