"""What a newcomer tries first: 3000 images of MNIST as files, a ResNet-18 as teacher, a small student, 10 epochs, default settings.

python benchmarks/newcomer.py --help lists the options. The trial is kept in --out, so you can stop it and go on."""
import argparse, warnings
from pathlib import Path

warnings.filterwarnings('ignore')
from fastai.vision.all import *
from fastkd.all import *
from PIL import Image
from torchvision.datasets import MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

def write_images(folder, out, n_train=3000, n_valid=2000):
    "The first images of MNIST's training and test set as PNG files, in a folder for each digit"
    if folder is None: folder = Path(MNIST(out, download=True).raw_folder)
    for part,nm,n in (('train','train',n_train), ('valid','t10k',n_valid)):
        xs,ys = read_image_file(str(Path(folder)/f'{nm}-images-idx3-ubyte')),read_label_file(str(Path(folder)/f'{nm}-labels-idx1-ubyte'))
        for i,(x,y) in enumerate(zip(xs[:n], ys[:n])):
            file = out/part/str(int(y))/f'{i}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists(): Image.fromarray(x.numpy()).save(file)

def small():
    "A CNN with 6,500 parameters, (B, 3, 28, 28) → logits (B, 10)"
    convs = [ConvLayer(i, o, stride=2) for i,o in zip((3,8,16), (8,16,32))]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(32, 10))

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--data', help="folder with the unpacked idx files of MNIST (default: download)")
    p.add_argument('--out', type=Path, default=Path('newcomer'), help="folder for images, teacher and trial (default: %(default)s)")
    p.add_argument('--epochs', type=int, default=10, help="(default: %(default)s)")
    p.add_argument('--lr', type=float, default=1e-2, help="maximum learning rate (default: %(default)s)")
    p.add_argument('--seeds', type=int, default=5, help="number of seeds (default: %(default)s)")
    p.add_argument('--n', type=int, default=3000, help="training images (default: %(default)s)")
    args = p.parse_args(argv)
    out = args.out.absolute()
    write_images(args.data, out/'images', args.n)
    set_seed(0)
    dls = ImageDataLoaders.from_folder(out/'images', valid='valid', bs=64, num_workers=0, seed=0)
    teacher = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy, path=out)
    if (out/'models/teacher.pth').exists(): teacher.load('teacher')
    else:
        teacher.unfreeze()
        teacher.fit_one_cycle(args.epochs, 1e-2)
        teacher.save('teacher')
    print(f"teacher: accuracy {teacher.validate()[1]:.2%}")
    def make(): return Learner(dls, small(), metrics=accuracy, path=out)
    methods = {'alone': None, 'label smoothing': 'smooth', 'faster head': 'faster head', 'distilled': {}}
    res = trial(make, teacher, methods, args.seeds, args.epochs, args.lr, file=out/'trial')
    print(res.table.round(4).to_string(), res, sep='\n')
    return res

if __name__ == '__main__': main()
