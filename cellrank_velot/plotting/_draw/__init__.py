"""What the plots share: figures, colours, cells, arrows, paths and films."""
