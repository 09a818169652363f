"""The server: OpenAI's routes and those of prefixes, tenants and keys, over one engine and one registry."""
