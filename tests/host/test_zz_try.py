def test_try(run, text_clip, native, loaded, picture, sample, core_text, told):
    for v in (native, loaded):
        for mode in ("blend aligned","blend as published","append picture"):
            out = run("Condition", text_clip, v, "a cat in a hat", mode=mode, images={"image0": picture})
            print(told(out)); print(out[0][0][0].shape, out[0][0][1].keys())
            print(sample(out[0]).std())
