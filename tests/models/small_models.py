"Small models of the kinds that fastai users train"
import timm
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config, awd_lstm_lm_config
from fastai.text.models.core import get_language_model, get_text_classifier
from torchvision.models.vision_transformer import VisionTransformer

def vit(depth=2, **kwargs):
    return VisionTransformer(image_size=32, patch_size=8, num_layers=depth, num_heads=2, **{'hidden_dim':16, 'mlp_dim':32, **kwargs})

def swin(depth=1, img_size=64, window_size=2):
    return timm.create_model('swin_tiny_patch4_window7_224', img_size=img_size, window_size=window_size, embed_dim=24,
                             depths=(1,1,depth,1), num_heads=(1,2,2,2), num_classes=3)

def _config(base, n_layers, **kwargs): return {**base, 'emb_sz':8, 'n_hid':12, 'n_layers':n_layers, **kwargs}

def text_classifier(n_layers=2):
    return get_text_classifier(AWD_LSTM, 20, 3, config=_config(awd_lstm_clas_config, n_layers), seq_len=5, lin_ftrs=[4])

def language_model(n_layers=2, **kwargs): return get_language_model(AWD_LSTM, 20, config=_config(awd_lstm_lm_config, n_layers, **kwargs))
