"""What distillation's teacher says: asked in every step, or once and kept on disk. For trainer/recipes."""
