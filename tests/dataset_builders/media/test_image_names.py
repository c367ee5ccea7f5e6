from dataset_builders.media.image_names import image_names, image_number


def test_frames_are_in_natural_order() -> None:
    names = [b"img_10.jpg", b"img_9.jpg", b"img_009.jpg", b"IMG_1.JPG", b"img_100.png", b"img_99.jpeg"]
    assert image_names(names) == [b"IMG_1.JPG", b"img_009.jpg", b"img_9.jpg", b"img_10.jpg", b"img_99.jpeg", b"img_100.png"]
    zero_padded = [b"%05d.jpg" % number for number in range(1, 200, 3)]
    assert image_names(zero_padded[::-1]) == zero_padded


def test_what_is_no_frame_is_left_out() -> None:
    names = [b"flow_x_1.jpg", b"flow_y_1.jpg", b"._img_1.jpg", b"img_1.png", b"img_1.jpg", b"Thumbs.db", b"img_2.txt", b"jpg"]
    assert image_names(names) == [b"img_1.jpg"]
    assert image_names([b"latin\xe9_2.webp", b"a" * 200 + b"9" * 50 + b".jpg"])[1] == b"latin\xe9_2.webp"


def test_the_number_of_an_image() -> None:
    assert [image_number(name) for name in (b"img_00012.jpg", b"1.png", b"shot2_0007_left.jpg", b"cover.jpg")] == [
        12,
        1,
        7,
        None,
    ]
