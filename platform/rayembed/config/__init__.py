"""What a recipe declares: one YAML file plus overrides becomes one frozen, validated `RunConfig`."""
