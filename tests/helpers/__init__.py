"""What several tests share; importable as `helpers`."""
