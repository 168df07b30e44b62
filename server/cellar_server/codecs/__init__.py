"""What stands around a graph: text to ids, acts to features, ids to text."""
