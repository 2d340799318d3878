"""Expert -> GPU slot: placements, the policies that make them, replica choice, files."""
