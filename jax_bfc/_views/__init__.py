"""Pictures of snapshots and recordings; loaded when first asked for."""
