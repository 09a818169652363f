"""One file a version of the schema, never changed once it has been published."""
