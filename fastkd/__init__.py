"Knowledge distillation for fastai: train a small model to match a large one"
__version__ = '0.1.0'
