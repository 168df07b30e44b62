"""Training, evaluation and export of Cellar's recurrent networks. The only part that needs torch."""
