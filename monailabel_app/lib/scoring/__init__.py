"""How good answers probably are."""
