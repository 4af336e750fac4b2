"""The verbs, one module each; `common` holds what several share."""
