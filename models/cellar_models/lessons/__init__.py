"""What is known about recurrent cells, shown by measurements: `cellar-models study` and `cellar-models compare`."""
