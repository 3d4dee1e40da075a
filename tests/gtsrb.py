"Generate a few images in the layout of the German traffic sign benchmark (GTSRB)"
import warnings
from fastai.vision.all import *

COLUMNS = ['Filename','Width','Height','Roi.X1','Roi.Y1','Roi.X2','Roi.Y2','ClassId']

def _image(rng, c, size=32):
    x = rng.integers(0, 80, (size,size,3))
    x[..., c%3] += 60 + c
    return PILImage.create(x.astype(np.uint8))

def make_gtsrb(path, n_classes=43, tracks=2, frames=5, n_test=30, seed=0):
    "Write `Final_Training/Images/000NN/TTTTT_FFFFF.ppm` with one csv per class, and the test images with their csv; return `path`"
    rng,path = np.random.default_rng(seed),Path(path)
    for c in range(n_classes):
        d = path/'Final_Training'/'Images'/f'{c:05d}'
        d.mkdir(parents=True)
        names = [f'{t:05d}_{f:05d}.ppm' for t in range(tracks) for f in range(frames)]
        for n in names: _image(rng, c).save(d/n)
        pd.DataFrame([[n,32,32,0,0,31,31,c] for n in names], columns=COLUMNS).to_csv(d/f'GT-{c:05d}.csv', sep=';', index=False)
    d = path/'Final_Test'/'Images'
    d.mkdir(parents=True)
    rows = [[f'{i:05d}.ppm',32,32,0,0,31,31,i%n_classes] for i in range(n_test)]
    for r in rows: _image(rng, r[-1]).save(d/r[0])
    pd.DataFrame(rows, columns=COLUMNS).to_csv(d/'GT-final_test.csv', sep=';', index=False)
    return path

def gtsrb_dls(path, size=32, bs=32, train='track'):
    "`DataLoaders` for the training folders, with all 43 classes in the vocabulary; the first track of each class is for validation, and with train='all' for training, too"
    files = sorted((path/'Final_Training'/'Images').rglob('GT-*.csv'))
    items = pd.concat([pd.read_csv(f, sep=';').assign(folder=f.parent) for f in files], ignore_index=True)
    augs = aug_transforms(do_flip=False, max_zoom=1.2, max_rotate=10, max_lighting=.8)
    def split(df):
        fits,holds = IndexSplitter(np.flatnonzero(df.Filename.str.startswith('00000_')))(df)
        return (fits+holds if train == 'all' else fits),holds
    block = DataBlock((ImageBlock, CategoryBlock(vocab=[str(i) for i in range(43)], sort=False)),
                      get_x=lambda r: r['folder']/r['Filename'], get_y=lambda r: str(r['ClassId']), splitter=split,
                      item_tfms=Resize(size), batch_tfms=[*augs, Normalize.from_stats(*imagenet_stats)])
    return block.dataloaders(items, bs=bs, num_workers=0)
