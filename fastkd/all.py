"What users of fastkd import: `from fastkd.all import *`, after fastai's own"
from fastkd.activation_losses import OFD, ActivationBoundaries, activation_boundaries, ofd
from fastkd.batch_losses import DIST, MultiLevel, dist, multi_level
from fastkd.callback import KnowledgeDistillation
from fastkd.contrastive import CRD, crd
from fastkd.data import digits_dls
from fastkd.evaluate import TTAEvaluator, test_time_aug
from fastkd.feature_losses import Attention, FitNet, Similarity, attention, fitnet, similarity
from fastkd.generations import born_again, distill_chain
from fastkd.label_losses import DecoupledKD, NormalizedKD, TeacherFree, WeightedSoftLabel, decoupled_kd, normalized_kd, teacher_free, weighted_soft_label
from fastkd.layers import layer_names
from fastkd.losses import BinarySoftTarget, Logits, SoftTarget, binary_soft_target, logits, soft_target
from fastkd.map_losses import FSP, NST, ChannelWise, FactorTransfer, channel_wise, factor_transfer, fsp, nst
from fastkd.masks import agreement, class_mask
from fastkd.mean_teacher import MeanTeacher
from fastkd.online import MutualLearning
from fastkd.pairs import pair_layers
from fastkd.regression_losses import Huber, TeacherBounded, huber, teacher_bounded
from fastkd.relation_losses import PKT, RKD, CorrelationCongruence, correlation_congruence, pkt, rkd
from fastkd.resume import Resume
from fastkd.review import ReviewKD, review_kd
from fastkd.split import body_head, split_at
from fastkd.teacher import Teacher
from fastkd.variational import VID, vid
from fastkd.warmup import LearnableT, warm_up

__all__ = ['ActivationBoundaries', 'Attention', 'BinarySoftTarget', 'CRD', 'ChannelWise', 'CorrelationCongruence', 'DIST', 'DecoupledKD', 'FSP',
           'FactorTransfer', 'FitNet', 'Huber', 'KnowledgeDistillation', 'LearnableT', 'Logits', 'MeanTeacher', 'MultiLevel', 'MutualLearning', 'NST',
           'NormalizedKD', 'OFD', 'PKT', 'RKD', 'Resume', 'ReviewKD', 'Similarity', 'SoftTarget', 'TTAEvaluator', 'Teacher', 'TeacherBounded',
           'TeacherFree', 'VID', 'WeightedSoftLabel', 'activation_boundaries', 'agreement', 'attention', 'binary_soft_target', 'body_head',
           'born_again', 'channel_wise', 'class_mask', 'correlation_congruence', 'crd', 'decoupled_kd', 'digits_dls', 'dist', 'distill_chain',
           'factor_transfer', 'fitnet', 'fsp', 'huber', 'layer_names', 'logits', 'multi_level', 'normalized_kd', 'nst', 'ofd', 'pair_layers', 'pkt',
           'review_kd', 'rkd', 'similarity', 'soft_target', 'split_at', 'teacher_bounded', 'teacher_free', 'test_time_aug', 'vid', 'warm_up',
           'weighted_soft_label']
