"What users of fastkd import: `from fastkd.all import *`, after fastai's own"
from fastkd.callback import KnowledgeDistillation
from fastkd.data import digits_dls
from fastkd.evaluate import TTAEvaluator, test_time_aug
from fastkd.masks import agreement, class_mask
from fastkd.feature_losses import Attention, FitNet, Similarity, attention, fitnet, similarity
from fastkd.layers import layer_names
from fastkd.losses import BinarySoftTarget, Logits, SoftTarget, binary_soft_target, logits, soft_target
from fastkd.pairs import pair_layers
from fastkd.split import body_head, split_at
from fastkd.teacher import Teacher

__all__ = ['Attention', 'BinarySoftTarget', 'FitNet', 'KnowledgeDistillation', 'Logits', 'Similarity', 'SoftTarget', 'TTAEvaluator', 'Teacher',
           'agreement', 'attention', 'binary_soft_target', 'body_head', 'class_mask', 'digits_dls', 'fitnet', 'layer_names', 'logits',
           'pair_layers', 'similarity', 'soft_target', 'split_at', 'test_time_aug']
