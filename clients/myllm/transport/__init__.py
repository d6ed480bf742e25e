"""Moving bytes. `http` is the only module of the SDK that touches httpx."""
