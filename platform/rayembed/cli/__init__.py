"""The command `rayembed`: one file a verb, the only place that parses options."""
