"The calls of the well-known traffic-sign tutorial run unchanged, on generated images in its layout"
import pytest
from fastai.vision.all import *
from sklearn.metrics import f1_score

from fastkd.all import *
from helpers import *

def test_the_calls_run_as_they_stand(tmp_path):
    torch.set_num_threads(1)
    set_seed(0)
    path = sample('gtsrb', tmp_path/'signs')
    few = dict(size=32, bs=8, n=172, num_workers=0)  # 86 images for training
    data,wd = gtsrb_dls(path, **few),1e-2
    warnings.filterwarnings('ignore', message='`create_cnn_model` has been renamed')
    warnings.filterwarnings('ignore', message='You are setting `weights')
    warnings.filterwarnings('ignore', message="The teacher's accuracy on a validation batch")
    weights = tmp_path/'teacher.pth'
    torch.save(create_cnn_model(resnet34, 43, pretrained=False).state_dict(), weights)
    interest_classes = [3, 7]

    f1_score_mult = FBeta(beta=1, average='weighted')
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
    assert kd.losses is not None and kd.terms[0].T == 20
    assert len(kd.history) == 16 and kd.history.notna().all().all()

    # on the whole data set, with new data, a new student and the same callback
    first,data = student,gtsrb_dls(path, full=True, **few)
    student = Learner(data, create_cnn_model(resnet18, 43, pretrained=False), metrics=[accuracy, f1_score_mult], splitter=default_split, wd=wd, cbs=kd)
    student.freeze_to(1)
    student.fit_one_cycle(1, lr_max=0.001)
    student.unfreeze()
    student.fit_one_cycle(10, lr_max=slice(0.0001, 0.001))
    assert len(kd.history) == 11 and list(kd.history.fit.unique()) == [0,1]
    with pytest.raises(ValueError, match='has moved to another learner'): first.fit_one_cycle(1)

    test_dataloader,y_true = gtsrb_test_dl(data, path, n=43)
    interest_idx = [data.vocab.o2i[str(c)] for c in interest_classes]
    mask = np.isin(y_true, interest_idx, invert=False)
    metric = partial(f1_score, average='weighted')
    results = test_time_aug(student, test_dataloader, y_true, metric, n_augs=[0, 5, 10, 20, 30], mask=mask)

    assert list(results.columns) == ['n_aug','score','time'] and list(results.n_aug) == [0,5,10,20,30]
    with student.no_bar(): preds = student.get_preds(dl=test_dataloader)[0].argmax(1).numpy()
    assert results.score[0] == pytest.approx(f1_score(y_true[mask], preds[mask], average='weighted'), abs=1e-9)  # (y_true, y_pred), not the reverse
    student.remove_cb(kd)
    without = test_time_aug(student, test_dataloader, y_true, metric, n_augs=[0], mask=~mask)
    assert without.score[0] == pytest.approx(f1_score(y_true[~mask], preds[~mask], average='weighted'), abs=1e-9)
