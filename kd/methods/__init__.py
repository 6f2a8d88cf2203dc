"""The distillation methods: pure functions of tensors."""
