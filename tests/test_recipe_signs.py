"The calls of the well-known traffic-sign tutorial run unchanged, on generated images in its layout"
import pytest
from fastai.vision.all import *

from fastkd.all import *
from gtsrb import *

def test_the_calls_run_as_they_stand(tmp_path):
    torch.set_num_threads(1)
    set_seed(0)
    path = make_gtsrb(tmp_path, frames=2)
    data,wd = gtsrb_dls(path, bs=8),1e-2
    f1_score_mult = F1Score(average='weighted')
    warnings.filterwarnings('ignore', message='`create_cnn_model` has been renamed')
    warnings.filterwarnings('ignore', message='You are setting `weights')
    warnings.filterwarnings('ignore', message="The teacher's accuracy on a validation batch")
    weights = tmp_path/'teacher.pth'
    torch.save(create_cnn_model(resnet34, 43, pretrained=False).state_dict(), weights)
    test = pd.read_csv(path/'Final_Test'/'Images'/'GT-final_test.csv', sep=';')
    test_dataloader = data.test_dl([path/'Final_Test'/'Images'/n for n in test.Filename])
    y_true,metric = tensor(test.ClassId.values),f1_score_mult

    teacher = create_cnn_model(resnet34, 43, pretrained=False)
    teacher.load_state_dict(torch.load(weights))
    student_model = create_cnn_model(resnet18, 43, pretrained=False)
    loss = partial(SoftTarget, T=20)
    kd = KnowledgeDistillation(teacher, loss, from_learner=False)
    student = Learner(data, student_model, metrics=[accuracy, f1_score_mult], splitter=default_split, wd=wd, cbs=kd)
    student.freeze_to(1)
    student.summary()
    student.lr_find()
    student.fit_one_cycle(1, lr_max=0.001)
    student.unfreeze()
    student.lr_find()
    student.fit_one_cycle(9, lr_max=slice(0.0001, 0.001))
    student.fit_one_cycle(6, lr_max=slice(0.00001, 0.0001))
    results = test_time_aug(student, test_dataloader, y_true, metric, n_augs=[0, 5, 10, 20, 30])

    assert kd.losses is not None and kd.terms[0].T == 20
    assert list(results.columns) == ['n_aug','score','time'] and list(results.n_aug) == [0,5,10,20,30] and results.score.between(0,1).all()
    assert len(kd.history) == 16 and kd.history.notna().all().all()
    seen = test_time_aug(student, test_dataloader, y_true, metric, n_augs=[1], mask=class_mask(y_true, [3, 7], data.vocab))
    unseen = test_time_aug(student, test_dataloader, y_true, metric, n_augs=[1], mask=class_mask(y_true, [3, 7], data.vocab, invert=True))
    assert len(seen) == len(unseen) == 1
