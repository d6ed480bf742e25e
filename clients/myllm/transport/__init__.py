"""Moving bytes. This package is the only place of the SDK that touches httpx."""
